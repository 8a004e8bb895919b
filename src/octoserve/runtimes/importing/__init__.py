"""From what others have written to a version folder: an object file, an MLflow model, a Triton repository.

Each module looks at one kind of source and says what a version of it would hold (`draft.Draft`), which can be written
to a folder. Which folder that is, what it is called and when it counts is not known here.
"""
