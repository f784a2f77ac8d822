"""Problems that agents solve together: data and models, the same for every runtime."""
