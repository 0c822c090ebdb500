"""The TorchServe adapter: files that `agewatch package` puts into a .mar."""
