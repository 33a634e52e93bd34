"""The server: what is asked over HTTP, by whom, and how much of it; metrics, logs and the page."""
