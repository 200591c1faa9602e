"""Reading the usual layouts of data sets: BraTS folders, the Decathlon, nnU-Net, DICOM."""
