"""cftools makes and edits brain MRI under "what if": the same brain, older, with a lesion, in another contrast."""

__version__ = "0.1.0"
