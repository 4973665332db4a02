"""The bundled small world: captioned 64 x 64 images in which diversity and prompt-following are measured exactly."""
