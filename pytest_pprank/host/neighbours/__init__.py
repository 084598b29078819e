"""The parts for ranks of the support for other pytest plugins, one module per plugin.

Each module is itself loaded as a pytest plugin. The controller names the ones that are needed
(controller.rank_config): a module here is loaded only beside the plugin that it supports, and may
import it.
"""
