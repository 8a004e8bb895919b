"""Who carries a route plan out: octoserve's own workers, an Envoy, a mesh.

One Protocol (`protocol.RoutingBackend`), one file a backend. A backend says what it can; a plan that needs more is
refused before anything changes. What may not live here: when a plan changes and why (`control`), and how a worker
picks (`routing.split`).
"""
