"""`python -m services.local_engine.on_vllm.quantize`: the command, where `anabranch` is not."""

from services.local_engine.on_vllm.quantize.command import command

if __name__ == "__main__":
    command()
