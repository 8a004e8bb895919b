"""What other systems need to run octoserve, as files for them: rendered, never sent.

One module a system. Nothing here calls a service, and nothing here is needed to serve.
"""
