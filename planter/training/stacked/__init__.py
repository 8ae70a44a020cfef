"""Several small trainings as one program: networks of one shape, their layers side by side."""
