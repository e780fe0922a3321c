"""Records of question, steps and answer, and curricula that hide steps in thoughts."""
