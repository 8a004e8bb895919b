"""What supervisor and workers say to each other: messages, their socket, and the worker's end of it."""
