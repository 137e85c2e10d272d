"""Parts of fuse."""
