r"""A module for each command of ``captum-mllm``, imported when the command is called.

Each has ``add_arguments(parser)`` and ``run(options)``.
"""
