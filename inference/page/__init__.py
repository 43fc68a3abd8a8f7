"""The page at `/`: plain HTML, CSS and ES modules in `files/`, and the routes that give them."""
