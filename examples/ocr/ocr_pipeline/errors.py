"""The example's error."""


class OcrError(Exception):
    """A missing network, an unreadable image, or a stage that failed; the message has the fix."""
