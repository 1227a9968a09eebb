"""Which integers stand for a weight: grids, nearest rounding, flips, and the searches of AWQ and GPTQ."""
