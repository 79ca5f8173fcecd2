//! What may be done with a VM now, and if not why: asked by `apply` and shown by the API.
