"""Who may ask: keys and tokens with rights on models, roles on the admin API, certificates; reloaded from files.

May not live here: what a refusal looks like on a wire, which is a door's, and which route wants which right.
"""
