"""What an agent looks at and acts on: a browser, an X display, or one of them with the acting left out."""
