r"""How the demo models were made: ``python -m captum_mllm.demo.training.train`` from a checkout.

This package is not installed. It needs PyTorch 2.9 or later, for ``torch.optim.Muon``; the rest of
``captum_mllm`` does not.
"""
