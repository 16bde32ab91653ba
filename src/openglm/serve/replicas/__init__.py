"""Replicas of a model behind one server: the server checks and streams, replicas write.

`engine` stands in the server where the model's engine would; `replica` is a copy of the model;
`cluster` lets Ray Serve start, watch and scale the copies. Only the last one knows Ray.
"""
