"""Pages and pictures: decoding against bare libraries, seconds by stage, and memory by the number of pages."""
