"""RealCustom: a real word of the prompt narrowed to the subject of one picture. Free of Ray."""
