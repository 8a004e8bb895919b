"""The REST door: HTTP/1.1 on the event loop, and the routes of the Open Inference Protocol over it."""
