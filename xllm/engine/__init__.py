"""One engine instance: a torch-free brain that decides steps, and a body that runs them. See ARCHITECTURE.md."""
