"""Pictures and pages of PDFs: decoded, rendered and resized to what a model sees. No torch; Pillow and pypdfium2 on use."""
