"""The bundled small world: captioned 64 x 64 pictures in which diversity and prompt-following are measured exactly."""
