"""Questions to stored rows."""
