"""The models being explained: the toy organism, behaviour labels, and what they say with and without the cue."""
