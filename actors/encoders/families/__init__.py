"""Model families: the layout of the published checkpoint and the forward pass, side by side."""
