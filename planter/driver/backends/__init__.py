"""Where jobs are done: in the driver's process or by Ray's workers."""
