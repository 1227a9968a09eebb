"""How well observers' scales fit captured activations, and what each costs the whole model."""
