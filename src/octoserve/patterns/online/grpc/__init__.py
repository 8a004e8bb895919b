"""The gRPC door: HTTP/2, gRPC's framing over it, and the methods of the Open Inference Protocol over that."""
