"""What tests are built from: texts and configs (`world`), tiny models, artifacts of each stage, Ray
clusters to take apart, and steps by their names (`ids`)."""
