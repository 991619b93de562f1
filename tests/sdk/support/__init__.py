"""What the tests share: the processes, the scripted model, the recorder of a stream and the reading of a log."""
