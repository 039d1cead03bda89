from .gpt import GPTForCausalLM

MODEL_MAP = {"GPTForCausalLM": GPTForCausalLM}
