"""What a rank does about other pytest plugins: one module each, loaded there as a pytest plugin.

The controller names those that are needed (controller.rank_config): a module here is loaded only
beside the plugin that it is for, and may import it.
"""
