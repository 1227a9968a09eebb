"""Output files and folders that are whole or absent, where several processes may write."""
