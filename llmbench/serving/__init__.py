"""The bundled serving stack: server, frontend, scheduler and the launching of it all."""
