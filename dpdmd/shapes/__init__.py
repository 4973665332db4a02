"""The small world: captioned 64 x 64 images on which diversity and prompt following can be measured exactly."""
