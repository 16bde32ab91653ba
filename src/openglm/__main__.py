"""`python -m openglm` is `glm`, for where that is not on the path."""

from openglm.cli.main import main

main()
