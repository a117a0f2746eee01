"""FlowMesh: a multi-tenant service fabric for LLM post-training and agentic workflows."""

__version__ = "0.1.0"
