"""Where does a mixture transition help, by how much, against isotropic noise and against what a user would pick?"""
