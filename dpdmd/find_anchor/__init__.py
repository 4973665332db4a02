"""Find K, the teacher's steps to the anchor, from the teacher alone."""
