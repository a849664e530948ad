"""Flows ready to deploy, composed of hfflows's tasks as your own would be."""
