"""Videos: files, folders of frames and arrays, decoded only when a view asks for frames."""
