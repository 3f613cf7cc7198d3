"""Preflight: does the model, loss and clipper at hand have the sensitivity that the plan claims?"""
