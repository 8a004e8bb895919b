"""The prediction log behind the workers' spools: files by day that people query, on disk or in S3.

What may not be here: anything on the path of a request, and what is made of the log (that is `control.drift`, and
whoever reads the files).
"""
