"""The page: search and recognise in the browser."""
