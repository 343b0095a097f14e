"""From DeepSpeed-Chat's scripts to a configuration. Light: nothing here imports a training library."""
