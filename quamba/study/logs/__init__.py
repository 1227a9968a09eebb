"""Result logs side by side."""
